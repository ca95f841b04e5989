"""Print conf/base.yml: ``python -m bigopt.config > conf/base.yml``."""

from bigopt.config.output import base_yaml

if __name__ == "__main__":
    print(base_yaml(), end="")
