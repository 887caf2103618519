from tests.server.conftest import device as device
from tests.server.conftest import serving as serving
from tests.server.conftest import stack as stack
