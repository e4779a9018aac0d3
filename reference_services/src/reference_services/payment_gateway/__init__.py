"""payment-gateway: card tokens and payments with dual control, port 8082."""
