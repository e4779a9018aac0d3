"""auth-service: OAuth 2.0 access tokens for the other services (RFC 6749 §4.4, RFC 9068), port 8085."""
