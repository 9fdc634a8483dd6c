"""The commands, a module each, with `main(arguments, voice)` -> exit code; `experiments.__main__` lists them."""
