"""The process that computes, and what the API process knows of it.

messages wire                          what they say to each other, and how
cost scheduler fair forecast           what work takes, and who goes next; both use these
client engines events                  the API process's side: processes that are started, watched and replaced
__main__ loop calls jobs loaded …      the engine's own side, which speaks torch: nothing else may import it
"""
