"""The ragged paged attention kernel of tokamax as families."""
