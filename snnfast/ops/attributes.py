"""The attributes of modules, in which neurons of any package keep their states: as they were."""


def parts_of(value) -> tuple:
    """What a dict, list or set holds; nothing of others."""
    if isinstance(value, dict):
        return (*value.keys(), *value.values())
    return tuple(value) if isinstance(value, (list, set)) else ()


def same(a: tuple, b: tuple) -> bool:
    return len(a) == len(b) and all(x is y for x, y in zip(a, b))


class Attributes:
    """What the modules' attributes are, one level of lists, dicts and sets included."""

    def __init__(self, modules):
        self.before = [
            (vars(m), {k: (v, parts_of(v)) for k, v in vars(m).items()}) for m in modules
        ]

    def changed(self) -> bool:
        return any(
            now.keys() != before.keys()
            or any(now[k] is not v or not same(parts_of(v), p) for k, (v, p) in before.items())
            for now, before in self.before
        )

    def restore(self) -> None:
        for now, before in self.before:
            now.clear()
            for key, (value, parts) in before.items():
                now[key] = value
                if isinstance(value, dict):
                    value.clear()
                    value.update(zip(parts, parts[len(parts) // 2 :]))
                elif isinstance(value, (list, set)):
                    value.clear()
                    (value.extend if isinstance(value, list) else value.update)(parts)
