"""``python -m s2ap_diag`` is ``s2ap-diag``."""

from s2ap_diag.commands import main

main(prog_name="s2ap-diag")
