"""What holds of every message to a user."""


def assert_is_one_sentence(error):
    assert str(error).isprintable()
    assert str(error).endswith(".")
    assert len(str(error)) <= 400
