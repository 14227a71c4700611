"""Examples of hypothesis have no deadline here: other work shares the cores (`@settings` says it again)."""

import pytest
from hypothesis import settings

settings.register_profile("gradwell-theory", deadline=None)


@pytest.fixture(autouse=True, scope="package")
def _no_deadline():
    before = settings.get_current_profile_name()
    settings.load_profile("gradwell-theory")
    yield
    settings.load_profile(before)
