"""Getting many captions: one journal under three lanes, a budget that holds, and nothing bought twice.

request.py      what is sent for an image: built once, hashed, the same for preview and run
policy.py       what may become of a request, and what follows: one table
journal.py      what was sent, what it cost, what came back; on local disk, killed at any moment
budget.py       reserve the worst case, settle by usage
limiter.py      requests and tokens per minute
client.py       HTTP
prepare.py      pixels to request bodies, off the event loop
lanes/          sync (and flex), batch
run.py          the door: `caption_all`
"""
