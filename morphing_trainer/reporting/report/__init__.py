"""The report of a run: one HTML page that needs nothing beside it. `page.page` makes it of a `story.Story`."""
