"""`report.html`: tables, plots and the page around them."""
