// Calls Holdfast from Go: go run . localhost:7400. The property example must run meanwhile (`make run`).
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	holdfast "holdfast.dev/example/gen/holdfast/v1"
)

// Call calls a method of an object with named arguments. It decodes the result into result, unless result is nil.
func Call(ctx context.Context, objects holdfast.ObjectsClient, kind, key, method string, arguments, result any) error {
	raw, err := json.Marshal(arguments)
	if err != nil {
		return err
	}
	response, err := objects.Call(ctx, &holdfast.CallRequest{
		Kind: kind, Key: key, Method: method, Arguments: &holdfast.CallRequest_Json{Json: string(raw)},
	})
	if err != nil || result == nil {
		return err
	}
	return json.Unmarshal([]byte(response.GetJson()), result)
}

func main() {
	gateway := "localhost:7400"
	if len(os.Args) > 1 {
		gateway = os.Args[1]
	}
	connection, err := grpc.NewClient(gateway, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	objects := holdfast.NewObjectsClient(connection)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()

	change := map[string]any{"type": "PRICE_UPDATE", "value": 350_000}
	if err := Call(ctx, objects, "Property", "from-go", "update", map[string]any{"change": change}, nil); err != nil {
		log.Fatal(err)
	}
	var property struct {
		Price int64 `json:"price"`
	}
	if err := Call(ctx, objects, "Property", "from-go", "snapshot", map[string]any{}, &property); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("Property/from-go costs %d\n", property.Price)

	change["value"] = -1
	err = Call(ctx, objects, "Property", "from-go", "update", map[string]any{"change": change}, nil)
	fmt.Printf("refused: %s: %s\n", status.Code(err), status.Convert(err).Message())
}
