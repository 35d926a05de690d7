"""Finished runs as one HTML file: what is measured of a run, what is shown of it, its pictures, the page."""

from s2ap_diag.report.page import write_report

__all__ = ["write_report"]
