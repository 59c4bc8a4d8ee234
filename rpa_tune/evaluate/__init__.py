"""One interface, several fidelities: a candidate goes in, an `Evaluation` comes out."""
