"""How far a long job is, on a terminal or told to a function."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def teller(progress) -> Iterator[Callable[[float, float, str], None]]:
    """A function (work done, all work, words) for the time of a block.

    progress: True for a bar on the terminal with the time left, a function of the same three, or nothing.
    """
    if not progress:
        yield lambda done, total, words: None
    elif callable(progress):
        yield progress
    else:
        from tqdm import tqdm
        form = "{percentage:3.0f}% |{bar:24}| {elapsed}, {remaining} left{postfix}"
        with tqdm(leave=False, bar_format=form) as bar:
            def tell(done, total, words):
                bar.total = total
                bar.set_postfix_str(words[-70:], refresh=False)
                bar.update(done - bar.n)
            yield tell
