"""The steps of device_call.py, each a process."""
