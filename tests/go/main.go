// go-spiffe against a Workload API socket: the serial of each certificate that its X509Source sees, one JSON line each.
//
//	workload-api SOCKET N
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

func main() {
	if err := follow(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func follow(socket, number string) error {
	wanted, err := strconv.Atoi(number)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(socket)))
	if err != nil {
		return err
	}
	defer source.Close()
	seen := map[string]bool{}
	for {
		svid, err := source.GetX509SVID()
		if err != nil {
			return err
		}
		bundle, err := source.GetX509BundleForTrustDomain(svid.ID.TrustDomain())
		if err != nil {
			return err
		}
		serial := svid.Certificates[0].SerialNumber.Text(16)
		if !seen[serial] {
			seen[serial] = true
			line := map[string]any{
				"serial": serial, "id": svid.ID.String(), "authorities": len(bundle.X509Authorities()),
			}
			if err := json.NewEncoder(os.Stdout).Encode(line); err != nil {
				return err
			}
		}
		if len(seen) == wanted {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("only %d of %d certificates came", len(seen), wanted)
		case <-source.Updated():
		}
	}
}
