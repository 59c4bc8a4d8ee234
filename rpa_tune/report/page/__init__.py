"""The page that a report is: what of it is not written in Python."""
