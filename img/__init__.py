"""Makes this folder a package, found before any other `img` when Python starts beside it.

Its files name each other as scripts do, so `python -m img.plot` needs the folder in the path.
"""

import sys

sys.path.insert(0, __path__[0])
