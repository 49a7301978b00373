"""Import routing statistics and masks that other tools wrote."""
