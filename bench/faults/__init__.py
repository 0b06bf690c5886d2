"""Faults, tried on the real parts: `python -m bench.faults.NAME` starts a service, breaks something under it, and
prints what its clients saw. The exit code is 1 where the service did not keep its promise. Linux only.

crash              the service, and the database, are killed in the midst of work
cut, frozen        PostgreSQL is cut off, or stops answering
locked             another process holds SQLite's lock
sqlite_away        the file of SQLite, or its folder, is gone for a while
sqlite_read_only   it cannot be written
first_connections  several processes open a new one at once
departures         thousands of clients leave before their answer
pipelining         clients send many requests on one connection, and leave
stop               half a request is open when the service is told to stop
purge, sign_ups    there is much to forget, or thousands of sign-ups wait for one address
bouncer            PgBouncer's transaction mode stands between
soak               abuse without a pause, for an hour
"""
