"""Makes what comes next in a thread, while the caller uses what came before."""

import concurrent.futures


def one_ahead(make, arguments):
    """Yields make(argument) for each argument, in order; a thread makes one more meanwhile.

    An error of `make` is raised in place of its result. Close the generator to end the thread.
    """
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as thread:
        upcoming = None
        for argument in arguments:
            current, upcoming = upcoming, thread.submit(make, argument)
            if current:
                yield current.result()
        if upcoming:
            yield upcoming.result()
