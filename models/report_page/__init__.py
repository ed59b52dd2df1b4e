"""The report as one HTML page, for the api and the engine alike: a pure function, without anything from elsewhere."""
