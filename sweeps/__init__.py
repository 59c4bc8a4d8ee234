"""The sweep plans that come with rpa-tune, as package data: `rpa-tune sweep quickstart`."""
