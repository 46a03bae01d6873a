"""The same numbers as transformers (PyTorch): its models with our random weights, outputs and gradients. `make parity`
runs these tests; `make test` leaves them out, because their peers are large."""
