"""Makes waiting threads not spin, as `lit-rlvr` does; import it before torch."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
