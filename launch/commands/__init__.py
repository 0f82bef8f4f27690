"""The commands of `launch`, a module each; `plan`, `analyse` and `bench` have folders."""
