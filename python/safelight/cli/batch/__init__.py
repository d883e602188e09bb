"""`safelight batch`: a file of requests in; pictures, videos and a file of results out."""
