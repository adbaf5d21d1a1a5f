"""Several transfers beside each other: what ``docs/transfers.md`` is made of."""
