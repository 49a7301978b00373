"""Fail where an installed package has a known vulnerability. Say so where no database of them can be reached."""

import json
import subprocess
import sys
from pathlib import Path


def main() -> int:
    command = [str(Path(sys.executable).with_name("pip-audit")), "--skip-editable", "--format", "json"]
    ran = subprocess.run([*command, "--progress-spinner", "off"], capture_output=True, text=True, check=False)
    try:
        packages = json.loads(ran.stdout)["dependencies"]
    except (ValueError, KeyError):
        print("dependencies not audited: no database of vulnerabilities can be reached")
        return 0
    audited = [package for package in packages if "vulns" in package]
    if not audited:
        print("dependencies not audited: no database of vulnerabilities knows them")
        return 0
    found = [(package, vulnerability) for package in audited for vulnerability in package["vulns"]]
    for package, vulnerability in found:
        fixed = ", ".join(vulnerability["fix_versions"]) or "no version"
        print(f"{package['name']} {package['version']}: {vulnerability['id']}, fixed in {fixed}")
    print(f"{len(audited)} of {len(packages)} installed packages audited, {len(found)} vulnerabilities")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
