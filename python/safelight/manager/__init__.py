"""The request manager: accepts jobs, hands them to the scheduler, records what comes of them."""
