"""Import this to make the short class names of all environments known: only imported classes have one."""

import lit_rlvr.environments.calculator
import lit_rlvr.environments.crop
import lit_rlvr.environments.guess_number
import lit_rlvr.environments.python
import lit_rlvr.environments.reward
import lit_rlvr.environments.sql_shell  # noqa: F401
