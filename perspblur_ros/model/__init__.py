"""The networks in torch: encoder, windows, head, decoder (paper 3.2–3.4). Needed for training and export only."""
