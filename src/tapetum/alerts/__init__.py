"""Alert packets: read, decoded in bulk, written back.

The road of a packet: `tapetum.alerts.packets` finds packets in files, archives and tables;
`tapetum.alerts.decode` turns many of them into one `AlertBatch` of columns and stamps; `tapetum.alerts.records`
puts packets back into containers.
"""
