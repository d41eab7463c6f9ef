"""Second-order steps along the flow, at one velocity call each."""
