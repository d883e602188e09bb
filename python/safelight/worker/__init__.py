"""A rank: executes plans on its part of the model. Sees no HTTP, no user files, no pickles."""
