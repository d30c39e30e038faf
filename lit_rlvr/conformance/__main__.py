"""`python -m lit_rlvr.conformance --loss MODULE:FUNCTION --expect GRPO`: print a line for each property of a function;
exit with 1 if one fails."""

import argparse
import sys

from lit_rlvr.common.packages import import_path
from lit_rlvr.conformance.functions import check_estimator, check_loss
from lit_rlvr.errors import UserError


def main() -> int:
    """Measure the function that the command line names; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lit_rlvr.conformance", description=__doc__)
    function = parser.add_mutually_exclusive_group(required=True)
    function.add_argument("--loss", metavar="MODULE:FUNCTION", help="the loss to check")
    function.add_argument("--advantage", metavar="MODULE:FUNCTION", help="the advantage to check")
    parser.add_argument("--expect", metavar="NAME", help="the published loss or advantage whose values it must have")
    parser.add_argument("--stops-gradient", action="store_true", help="the loss detaches values on purpose")
    options = parser.parse_args()
    try:
        if options.loss:
            findings = check_loss(import_path("--loss", options.loss), options.expect, options.stops_gradient)
        else:
            findings = check_estimator(import_path("--advantage", options.advantage), options.expect)
    except UserError as error:
        parser.error(str(error))
    print(*findings, sep="\n")
    return int(not all(finding.ok for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
