"""`python -m fsd.cli`, which is how the processes of an embedded cluster are started."""

from fsd.cli.main import main

raise SystemExit(main())
