"""From stored answers to rows: what counts as better (`objective.py`), which winners become rows
(`promote.py`), and few configs with a rule that picks one (`portfolio.py`).
"""
