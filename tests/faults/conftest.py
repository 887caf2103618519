from tests.server.conftest import device as device
from tests.server.conftest import running as running
from tests.server.conftest import stack as stack
