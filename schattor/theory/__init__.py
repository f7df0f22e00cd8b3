"""Numbers only: exponents, oracles, couplings, chain coefficients and cost. Imports no torch."""
