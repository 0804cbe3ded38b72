"""What `import dcdctl` offers: the commands as functions, for notebooks and programs.

As in `cli/`, there is no logic here: a function turns strings into paths, devices and settings, calls the function of
the core that its command calls, and returns what that returns. The core's errors are raised as they are.
"""
