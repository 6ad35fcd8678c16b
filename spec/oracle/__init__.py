"""The oracle: exact rationals, standard library only, written from the clauses of spec/*.md.

scalar.py decodes one code and encodes one value; blocks.py quantises tiles and packs codes. Nothing here
knows numpy or refq: a caller hands over the fields of a row as a dict of plain numbers and words.
"""
