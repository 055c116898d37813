"""What the commands exit with."""

PASS = 0  # all verdicts pass
FAIL = 1  # a verdict or a limit failed; what was made is written
BAD_INPUT = 2  # bad usage or bad input; nothing is written
DEFECT = 70  # sysexits.h, EX_SOFTWARE: a release gate must not mistake a crash for a failed verdict
UNTOLD = 74  # sysexits.h, EX_IOERR: all is done, and standard output cannot be written to
