"""What a person sees of a run: tables, banners, the progress display, the run log and the plot.

`tables` and `plots` are pure; `display` and `log` are wiring. Nothing is imported here, so that reading a record does
not load matplotlib or transformers.
"""
