"""synthetic-phi-service (port 8081): fictitious patients for tests and demonstrations."""
