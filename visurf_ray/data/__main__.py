"""`python -m visurf_ray.data check=PATH`: looks at a data set. See `visurf_ray.check_data`."""

import sys

from visurf_ray.check_data import main

if __name__ == "__main__":
    sys.exit(main())
