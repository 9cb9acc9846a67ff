"""What `dev.py` is made of: the environment, the host, a running server, a client, the tests and the demo.

Standard library only and Python 3.10: these modules run before anything is installed. Two exceptions run inside the
environment as separate scripts, `inside.py` (the pack and the host imported) and `sheet.py` (Pillow).
"""
