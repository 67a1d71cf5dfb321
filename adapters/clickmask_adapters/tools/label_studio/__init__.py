"""Label Studio (recorded with 1.23.2): the routes of its machine learning backends."""
