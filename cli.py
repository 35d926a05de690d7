"""``python cli.py ...`` from a checkout is ``s2ap-diag ...``."""

from s2ap_diag.commands import main

if __name__ == "__main__":
    main(prog_name="s2ap-diag")
